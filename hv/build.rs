//! Links the hypervisor as a freestanding image.

fn main() {
    freestanding_link::with("link.ld");
}
