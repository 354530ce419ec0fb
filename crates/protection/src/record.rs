//! The record: a header, the pins of each vCPU, runs of pages that are alike, and a digest of all
//! that. Layout version 1, little endian.
//!
//! The runs follow each other without gap from frame 0 to the last one, and two neighbours differ,
//! so that a state has one record only.

use crate::{Kernel, Settings};
use abi::hypercall::SupervisorMode;
use abi::policy::{self, Policy};
use abi::{Digest, MAX_CPUS};
use addr::{FrameRange, Gfn, GuestPhysical};
use integrity::pins::{ControlPin, MsrPins, Pins, SelectorPin, TablePin};
use integrity::state::Page;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First eight bytes of a record.
pub const MAGIC: [u8; 8] = *b"RVSTATE\0";
/// Version of the layout.
pub const VERSION: u32 = 1;
/// Most runs of a record, which so has at most 1 MiB and a few KiB: a guest can make every page
/// differ from its neighbours.
pub const MOST_RUNS: usize = 1 << 16;
/// Longest record in bytes.
pub const MOST_BYTES: usize =
    size_of::<Header>() + MAX_CPUS * size_of::<Vcpu>() + MOST_RUNS * size_of::<Run>() + DIGEST;
const DIGEST: usize = size_of::<u64>();

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: u32,
    /// Number of [`Run`]s.
    runs: u32,
    /// One bit for each vCPU that has pins, which follow in this order.
    vcpus: u32,
    stage: u8,
    separation: u8,
    execute_only: u8,
    /// 1: `gva` and `gpa` are known.
    located: u8,
    frames: u64,
    kernel_digest: u64,
    gva: u64,
    gpa: u64,
    requested: [Pin; 2],
    policy: policy::Record,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Pin {
    ones: u64,
    zeros: u64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Vcpu {
    /// CR0, CR4, EFER.
    control: [Pin; 3],
    msrs: [u64; MsrPins::COUNT],
    /// GDTR, IDTR.
    bases: [u64; 2],
    limits: [u32; 2],
    /// LDTR, TR.
    selectors: [u16; 2],
    reserved: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Run {
    first: u64,
    count: u32,
    page: u8,
    reserved: [u8; 3],
}

/// The state has no record: its pages make more than [`MOST_RUNS`] runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {MOST_RUNS} runs of pages that are alike")]
pub struct TooLong;

/// Writes a record, piece by piece, to `sink`; `page` tells what is in force for each frame below
/// `settings.frames` and must not change meanwhile. Answers its length in bytes.
///
/// # Errors
/// See [`TooLong`]; nothing was written.
pub fn save(
    settings: &Settings,
    page: impl Fn(Gfn) -> Page,
    mut sink: impl FnMut(&[u8]),
) -> Result<usize, TooLong> {
    let count = runs(settings.frames, &page).take(MOST_RUNS + 1).count();
    if count > MOST_RUNS {
        return Err(TooLong);
    }
    let mut digest = Digest::default();
    let mut length = 0;
    let mut put = |bytes: &[u8]| {
        digest.update(bytes);
        length += bytes.len();
        sink(bytes);
    };
    put(Header::of(settings, u32::try_from(count).unwrap_or(u32::MAX)).as_bytes());
    for pins in settings.vcpus.iter().flatten() {
        put(Vcpu::of(pins).as_bytes());
    }
    for run in runs(settings.frames, &page) {
        put(run.as_bytes());
    }
    let digest = digest.finish();
    sink(digest.as_bytes());
    Ok(length + DIGEST)
}

/// The pages, run by run.
fn runs(frames: u64, page: impl Fn(Gfn) -> Page) -> impl Iterator<Item = Run> {
    let mut next = 0_u64;
    core::iter::from_fn(move || {
        let first = next;
        let longest = frames.min(first.saturating_add(u64::from(u32::MAX)));
        let this = (first < frames).then(|| page(Gfn::new(first)))?;
        next = (first + 1..longest).find(|at| page(Gfn::new(*at)) != this).unwrap_or(longest);
        let count = u32::try_from(next - first).unwrap_or(u32::MAX);
        Some(Run { first, count, page: this.into(), reserved: [0; 3] })
    })
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    /// Too short, or without the magic number.
    #[error("not the protection state of a VM")]
    NotAState,
    /// Another version of the layout.
    #[error("layout version {0}, which is not known here")]
    Version(u32),
    /// Not as long as its header says.
    #[error("it is cut short, or longer than its header says")]
    Length,
    /// The digest does not match.
    #[error("it is damaged: the digest does not match")]
    Digest,
    /// A field has a value that stands for nothing.
    #[error("a field has a value that stands for nothing")]
    Value,
}

/// A record whose every field was checked.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// Everything but the pages.
    pub settings: Settings,
    runs: &'a [u8],
}

impl<'a> Saved<'a> {
    /// Reads and checks a whole record, digest first.
    ///
    /// # Errors
    /// See [`Damaged`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Damaged> {
        let (header, rest) = Header::read_from_prefix(bytes).map_err(|_| Damaged::NotAState)?;
        if header.magic != MAGIC {
            return Err(Damaged::NotAState);
        }
        if header.version != VERSION {
            return Err(Damaged::Version(header.version));
        }
        let count = usize::try_from(header.runs).unwrap_or(usize::MAX);
        let vcpus = header.vcpus.count_ones() as usize * size_of::<Vcpu>();
        if count > MOST_RUNS || rest.len() != vcpus + count * size_of::<Run>() + DIGEST {
            return Err(Damaged::Length);
        }
        let (covered, digest) = bytes.split_at(bytes.len() - DIGEST);
        if abi::digest(covered).as_bytes() != digest {
            return Err(Damaged::Digest);
        }
        let (vcpus, rest) = rest.split_at(vcpus);
        let runs = rest.get(..count * size_of::<Run>()).unwrap_or_default();
        let saved = Self { settings: header.settings(vcpus).ok_or(Damaged::Value)?, runs };
        if saved.is_canonical() { Ok(saved) } else { Err(Damaged::Value) }
    }

    /// The pages, run by run, from frame 0 to the last.
    pub fn runs(&self) -> impl Iterator<Item = (FrameRange<GuestPhysical>, Page)> + use<'a> {
        raw_runs(self.runs).filter_map(|run| {
            let frames = FrameRange::with_count(Gfn::new(run.first), u64::from(run.count));
            Some((frames, Page::try_from(run.page).ok()?))
        })
    }

    /// Whether the runs are those that [`save`] writes.
    fn is_canonical(&self) -> bool {
        let mut end = 0;
        let mut before = None;
        let ordered = raw_runs(self.runs).all(|run| {
            let good = run.first == end
                && run.count > 0
                && run.reserved == [0; 3]
                && Page::try_from(run.page).is_ok()
                // Two that are alike make one, if that is not too long.
                && before.is_none_or(|(page, count)| page != run.page || count == u32::MAX);
            before = Some((run.page, run.count));
            end += u64::from(run.count);
            good
        });
        ordered && end == self.settings.frames
    }
}

fn raw_runs(bytes: &[u8]) -> impl Iterator<Item = Run> {
    bytes.chunks_exact(size_of::<Run>()).filter_map(|run| Run::read_from_bytes(run).ok())
}

impl Pin {
    const fn of(pin: ControlPin) -> Self {
        Self { ones: pin.must_be_one, zeros: pin.must_be_zero }
    }

    /// `None` if no value satisfies it.
    fn pin(self) -> Option<ControlPin> {
        let pin = ControlPin { must_be_one: self.ones, must_be_zero: self.zeros };
        (self.ones & self.zeros == 0).then_some(pin)
    }
}

impl Vcpu {
    fn of(pins: &Pins) -> Self {
        Self {
            control: [pins.cr0, pins.cr4, pins.efer].map(Pin::of),
            msrs: pins.msrs.values(),
            bases: [pins.gdtr.base, pins.idtr.base],
            limits: [pins.gdtr.limit, pins.idtr.limit],
            selectors: [pins.ldtr.selector, pins.tr.selector],
            reserved: 0,
        }
    }

    fn pins(&self) -> Option<Pins> {
        let [cr0, cr4, efer] = self.control.map(Pin::pin);
        let (bases, limits) = (self.bases, self.limits);
        let [ldtr, tr] = self.selectors.map(|selector| SelectorPin { selector });
        (self.reserved == 0).then_some(Pins {
            cr0: cr0?,
            cr4: cr4?,
            efer: efer?,
            msrs: MsrPins::from_values(self.msrs),
            gdtr: TablePin { base: bases[0], limit: limits[0] },
            idtr: TablePin { base: bases[1], limit: limits[1] },
            ldtr,
            tr,
        })
    }
}

impl Header {
    fn of(settings: &Settings, runs: u32) -> Self {
        let kernel = settings.kernel.unwrap_or(Kernel { gva: 0, gpa: 0 });
        let present = (0..).zip(&settings.vcpus).filter(|(_, pins)| pins.is_some());
        Self {
            magic: MAGIC,
            version: VERSION,
            runs,
            vcpus: present.fold(0, |mask, (index, _): (u32, _)| mask | 1 << index),
            stage: settings.stage,
            separation: (settings.separation as u64).to_le_bytes()[0],
            execute_only: settings.execute_only.into(),
            located: settings.kernel.is_some().into(),
            frames: settings.frames,
            kernel_digest: settings.kernel_digest,
            gva: kernel.gva,
            gpa: kernel.gpa,
            requested: settings.requested.map(Pin::of),
            policy: settings.policy.to_record(),
        }
    }

    /// `vcpus` are the bytes of as many as [`Header::vcpus`] has bits.
    fn settings(&self, vcpus: &[u8]) -> Option<Settings> {
        let flag = |byte| (byte <= 1).then_some(byte == 1);
        let located = flag(self.located)?;
        let [zero, four] = self.requested.map(Pin::pin);
        let nowhere = located || self.gva == 0 && self.gpa == 0;
        if self.stage > 2 || self.vcpus >> MAX_CPUS != 0 || (self.stage > 0) != located || !nowhere
        {
            return None;
        }
        // Another version of Ravelin may know more fields of a policy.
        let policy = Policy::parse(self.policy.as_bytes()).ok()?;
        if policy.to_record().as_bytes() != self.policy.as_bytes() {
            return None;
        }
        let mut pins = [None; MAX_CPUS];
        let mut records = vcpus.chunks_exact(size_of::<Vcpu>());
        for (index, slot) in (0..).zip(&mut pins) {
            if self.vcpus >> index & 1_u32 != 0 {
                *slot = Some(Vcpu::read_from_bytes(records.next()?).ok()?.pins()?);
            }
        }
        Some(Settings {
            policy,
            stage: self.stage,
            separation: SupervisorMode::from_number(self.separation.into())?,
            execute_only: flag(self.execute_only)?,
            frames: self.frames,
            kernel_digest: self.kernel_digest,
            kernel: located.then_some(Kernel { gva: self.gva, gpa: self.gpa }),
            requested: [zero?, four?],
            vcpus: pins,
        })
    }
}
