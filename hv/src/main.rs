//! Ravelin's hypervisor: boots first, moves a stock Linux kernel into a virtual machine and makes
//! it keep its own promises. The only trusted code, with all of its `unsafe`.
//!
//! A tour: [`boot`] from the loader to the guest's first instruction; [`vcpu`] the vCPU, [`vendor`]
//! what an architecture supplies for it, [`svm`] and [`vmx`] how AMD and Intel do; [`vm`] the exits
//! and verdicts; [`memory`] what the hypervisor maps, and how it reaches what it does not; [`cpu`]
//! what a CPU is; [`task`] programs without privilege; [`report`] events.

#![no_std]
#![no_main]

mod boot;
mod cpu;
mod memory;
#[cfg(feature = "planted")]
mod planted;
mod publish;
mod report;
mod runtime;
mod svm;
mod task;
mod vcpu;
mod vendor;
mod vm;
mod vmx;
