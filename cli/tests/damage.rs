//! Damaged policy files: the answer is a policy or a message, in bounded time and without a panic.

use abi::policy::Policy;
use proptest::prelude::*;
use ravelin::policy;

/// Every key and every kind of violation, as `ravelin policy check` prints them.
fn good() -> String {
    policy::to_toml(&Policy::default())
}

#[test]
fn a_policy_cut_off_anywhere_is_answered() {
    let text = good();
    for length in 0..text.len() {
        if let Ok(policy) = policy::parse(&text[..length]) {
            assert_eq!(policy::parse(&policy.to_toml()).unwrap(), policy);
        }
    }
}

#[test]
fn deep_and_long_files_are_answered() {
    let deep = 100_000;
    for text in [
        format!("a = {}", "[".repeat(deep)),
        format!("a = {}", "{ a = ".repeat(deep)),
        "[[a]]\n".repeat(deep),
        format!("[{}a]", "a.".repeat(deep)),
        format!("{}a = 1", "a.".repeat(deep)),
        format!("announce = {}", "1".repeat(deep)),
        format!("announce = \"\"\"{}", "\\".repeat(deep)),
        format!("[reactions]\n{}", "msr = 'log'\n".repeat(deep)),
        format!("[reactions]\n\"{}\" = 'log'", "x".repeat(deep)),
    ] {
        let start: String = text.chars().take(30).collect();
        assert!(policy::parse(&text).is_err(), "{start}");
    }
}

#[test]
fn a_file_that_is_no_text_or_too_long_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy");
    for (bytes, words) in
        [(vec![0xff; 20], "cannot read"), (vec![b'#'; (1 << 20) + 1], "longer than 1048576 bytes")]
    {
        std::fs::write(&path, bytes).unwrap();
        let error = policy::load(&path).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let error = policy::load(std::path::Path::new("/dev/zero")).unwrap_err().to_string();
    assert!(error.contains("longer than"), "{error}");
}

proptest! {
    #[test]
    fn damage_is_answered(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = good().into_bytes();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(policy) = policy::parse(&text) {
            prop_assert_eq!(policy::parse(&policy.to_toml()).unwrap(), policy);
        }
    }

    #[test]
    fn any_words_of_toml_are_answered(
        words in prop::collection::vec(
            prop::sample::select(&[
                "[", "]", "{", "}", "=", ".", ",", "\n", "\"", "'", "#", "reactions", "default",
                "msr", "modules", "announce", "true", "deny", "1e9", "\u{0}", "\u{feff}", "é",
            ][..]),
            0..60,
        ),
    ) {
        let _ = policy::parse(&words.concat());
    }
}
