//! Links the task as a freestanding program.

fn main() {
    freestanding_link::with("../../../tasks/rt/link.ld");
}
