//! The audit's page, as a browser shows it.

use crate::shell::run;
use anyhow::Context;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::process::Command;

/// How many pixels of a page have this colour in a browser.
///
/// # Errors
/// The browser shows nothing.
pub fn pixels(page: &Path, colour: [u8; 3]) -> anyhow::Result<usize> {
    let picture = page.with_extension("png");
    let profile = page.with_extension("profile");
    let mut browser = Command::new("chromium");
    browser
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,1200"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--screenshot={}", picture.display()))
        .arg(format!("file://{}", page.display()));
    run(&mut browser)?;
    let _ = std::fs::remove_dir_all(&profile);
    let mut decoder = png::Decoder::new(BufReader::new(File::open(&picture)?));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info()?;
    let mut bytes = vec![0; reader.output_buffer_size().context("the picture is too large")?];
    let info = reader.next_frame(&mut bytes)?;
    let samples = info.color_type.samples();
    let shown = bytes.chunks_exact(samples).filter(|pixel| pixel.starts_with(&colour));
    Ok(shown.count())
}
