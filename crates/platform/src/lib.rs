//! The platform around the CPU, as data: every way by which a machine takes a CPU away, starts one,
//! resets, sleeps, moves memory decoding, or sends an interrupt that is more than an interrupt.
//!
//! A VM boundary is only as good as the ways around it. Each of them is a row here: ports, device
//! registers, PCI configuration registers, model-specific registers; what is allowed there, what is
//! not, and where the manual says so. The permission maps of both vendors, the write-protected
//! pages and the tests come from these rows. What always holds: what no rule allows is refused, and
//! what reaches the hardware is what was judged.
//!
//! | way | module |
//! |---|---|
//! | model-specific registers | [`msr`] |

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod msr;
