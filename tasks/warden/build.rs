//! Links the task as a freestanding program.

fn main() {
    freestanding_link::with("../rt/link.ld");
}
