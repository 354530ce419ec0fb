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
//! | ports | [`ports`] |
//! | PCI configuration | [`config`], by [`chipset`] |
//! | local APICs, I/O APICs, HPETs | [`apic`], [`ioapic`], [`hpet`], all of them by [`message`] |
//! | what the firmware says of sleep | [`aml`] |
//! | model-specific registers | [`msr`] |

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod aml;
pub mod apic;
pub mod chipset;
pub mod config;
pub mod hpet;
pub mod ioapic;
pub mod message;
pub mod msr;
pub mod ports;
pub mod verdict;
