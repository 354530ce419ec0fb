//! Where verdicts are made: what a guest page may be used for, which bytes may become kernel text,
//! which register values are allowed, what may become code.
//!
//! Nothing here touches hardware or guest memory. A caller tells what it sees and gets an answer;
//! carrying it out, and reporting it, is the caller's part. What always holds: an input that no
//! rule covers is refused.
//!
//! | question | module |
//! |---|---|
//! | how many aliases can read, write, execute a frame? | [`rights`] |
//! | what does the second stage allow on a page? | [`state`] |
//! | is this write to locked text a legal step at a patch site? | [`patch`] |
//! | may this control register, MSR, descriptor table have this value? | [`pins`] |
//! | may this page become code after the lock? | [`promote`] |

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod patch;
pub mod pins;
pub mod promote;
pub mod rights;
pub mod state;

bitflags::bitflags! {
    /// What may be done with a page.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Rights: u8 {
        /// Read.
        const READ = 1;
        /// Write.
        const WRITE = 2;
        /// Execute: fetch instructions.
        const EXECUTE = 4;
    }
}
