//! Tables for people, all in one style.

use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;

/// A table with this header, or with none if it is empty.
pub fn table<T: Into<comfy_table::Cell>>(header: impl IntoIterator<Item = T>) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let header: Vec<comfy_table::Cell> = header.into_iter().map(Into::into).collect();
    if !header.is_empty() {
        table.set_header(header);
    }
    table
}
