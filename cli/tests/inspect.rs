//! The `ravelin inspect` command itself.

use std::path::Path;
use std::process::{Command, Output};

fn inspect(kernel: &Path, options: &[&str]) -> std::io::Result<Output> {
    Command::new(env!("CARGO_BIN_EXE_ravelin")).arg("inspect").arg(kernel).args(options).output()
}

#[test]
fn what_is_no_kernel_is_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vmlinuz");
    let mut cut = vec![0; 0x240];
    cut[0x202..0x206].copy_from_slice(b"HdrS");
    cut[0x206] = 15;
    cut[0x207] = 2;
    for (bytes, words) in
        [(&b"text"[..], "not a bzImage"), (&b""[..], "is empty"), (&cut[..], "truncated")]
    {
        std::fs::write(&path, bytes).unwrap();
        let output = inspect(&path, &["--json"]).unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(output.stdout.is_empty() && message.contains(words), "{message}");
    }
}

/// Every text and number in a JSON value.
fn leaves(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Array(items) => items.iter().for_each(|item| leaves(item, found)),
        serde_json::Value::Object(map) => map.values().for_each(|item| leaves(item, found)),
        serde_json::Value::String(text) => found.push(text.clone()),
        serde_json::Value::Number(number) => found.push(number.to_string()),
        serde_json::Value::Bool(_) | serde_json::Value::Null => {}
    }
}

/// On the first of the kernels that `RAVELIN_TEST_KERNELS` names.
#[test]
fn tables_and_json_say_the_same() {
    let named = std::env::var_os("RAVELIN_TEST_KERNELS").unwrap_or_default();
    let Some(kernel) = std::env::split_paths(&named).find(|path| path.is_file()) else {
        println!("skipped: RAVELIN_TEST_KERNELS names no kernel file");
        return;
    };
    let text = String::from_utf8(inspect(&kernel, &[]).unwrap().stdout).unwrap();
    let json = inspect(&kernel, &["--json", "--sites"]).unwrap();
    assert!(json.status.success() && json.stderr.is_empty());
    let mut json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let sites = json.as_object_mut().unwrap().remove("sites").unwrap();
    let counts = json["patch_sites"].as_array().unwrap().iter();
    let counted: u64 = counts.map(|row| row["count"].as_u64().unwrap()).sum();
    assert_eq!(sites.as_array().unwrap().len() as u64, counted);
    let mut found = Vec::new();
    leaves(&json, &mut found);
    assert!(found.len() > 200);
    for leaf in found {
        assert!(text.contains(&leaf), "{leaf}");
    }
}
