//! Ownership under random load against a plain model, without memory at every point, and its
//! protocol under every interleaving.

mod load;
pub mod map;
mod protocol;
