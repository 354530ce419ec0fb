//! What came of every kernel on every emulator, as one table.

use super::{Check, FULL};
use crate::boot::Report;
use crate::build::On;
use ravelin::events::Body;
use ravelin::table::table;
use std::cell::RefCell;

/// The rows so far.
#[derive(Default)]
pub struct Matrix {
    rows: RefCell<Vec<Vec<String>>>,
}

impl Matrix {
    /// Adds what came of a kernel; `good`: all was as it must be.
    pub(super) fn add(&self, release: &str, on: On, report: &Report, checks: &[Check], good: bool) {
        let mut row = vec![release.to_owned(), on.to_string()];
        row.extend(FULL.checks.iter().map(|name| {
            let check = checks.iter().find(|check| check.name == *name);
            check.map_or_else(|| "-".to_owned(), cell)
        }));
        let promoted =
            report.records.iter().filter(|record| matches!(record.body, Body::Promoted(_))).count();
        row.push(promoted.to_string());
        row.push(report.violations().len().to_string());
        row.push(format!("{:.0} s", report.outcome.wall.as_secs_f32()));
        row.push(if good { "ok" } else { "FAILED" }.to_owned());
        self.rows.borrow_mut().push(row);
    }

    /// Prints the table, if there is anything in it.
    pub fn print(&self) {
        let rows = self.rows.borrow();
        if rows.is_empty() {
            return;
        }
        let last = ["code runs", "violations", "host time", "result"];
        let mut table = table(["kernel", "on"].iter().chain(FULL.checks).chain(&last).copied());
        for row in rows.iter() {
            table.add_row(row);
        }
        anstream::println!(
            "Stock kernels in Debian systems; seconds of the guest, for login since its start\n{table}"
        );
    }
}

fn cell(check: &Check) -> String {
    let seconds = if check.name == "login" { check.end } else { check.end - check.start };
    if check.ok { format!("{seconds:.0} s") } else { "FAILED".to_owned() }
}
