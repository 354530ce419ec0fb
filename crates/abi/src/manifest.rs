//! The manifest: what the hypervisor must know about one kernel, made before boot by `ravelin
//! prepare`.
//!
//! A manifest is a [`Header`], five tables, each sorted, and the symbol text that only the host
//! reads. Offsets count from the kernel's `_text`, whose run-time address KASLR chooses. The
//! hypervisor keeps the first `resident_length` bytes and never reads the symbols.
//!
//! What the kernel patches after its first user-mode instruction is in [`Manifest::sites`] and
//! [`Manifest::traced`]. Alternatives, retpolines, return and ITS thunks, call thunks and the
//! sealing of ENDBR are not there: in the kernel's own text Linux (looked at: 6.1, 6.12, 7.2) applies
//! them in `alternative_instructions()`, which is init code that runs before any other CPU is up.
//! One exception is known: a kernel that was started on one CPU of several takes its `lock`
//! prefixes away and puts them back when the second CPU comes (`alternatives_enable_smp`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First eight bytes.
pub const MAGIC: [u8; 8] = *b"RVMANIFE";
/// Version of this layout.
pub const VERSION: u32 = 5;
/// The hypervisor accepts no manifest larger than this, in bytes.
pub const MAX_LENGTH: u32 = 8 << 20;

/// Bytes `[start, end)`, counted from `_text`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// One past the last.
    pub end: u32,
}

impl Span {
    /// Whether `offset` lies inside.
    pub const fn contains(self, offset: u64) -> bool {
        self.start as u64 <= offset && offset < self.end as u64
    }
    /// Number of bytes.
    pub const fn length(self) -> u32 {
        self.end.saturating_sub(self.start)
    }
}

/// Part of a manifest file: `count` items from byte `offset` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Table {
    /// First byte, counted from the start of the manifest; a multiple of 4.
    pub offset: u32,
    /// Items (bytes, for text).
    pub count: u32,
}

/// The start of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: u32,
    /// Bytes of the whole manifest.
    pub total_length: u32,
    /// Digest of everything behind this field, up to `total_length`.
    pub digest: u64,
    /// Bytes up to the end of the function table: what the hypervisor keeps.
    pub resident_length: u32,
    /// Offset of `entry_SYSCALL_64`, which LSTAR points to.
    pub entry_syscall: u32,
    /// Length of the kernel file (bzImage) in bytes.
    pub kernel_length: u64,
    /// Digest of the kernel file.
    pub kernel_digest: u64,
    /// Address that `_text` was linked at.
    pub link_base: u64,
    /// `[_stext, _etext)`, page-aligned outwards.
    pub text: Span,
    /// `[__start_rodata, __end_rodata)`, page-aligned inwards; holds `ro_after_init`.
    pub rodata: Span,
    /// Read-only-after-init data.
    pub ro_after_init: Span,
    /// `[_sinittext, _einittext)`, page-aligned outwards.
    pub init_text: Span,
    /// Offset of `_end`.
    pub image_end: u32,
    /// Offset of `__x86_return_thunk`, 0 if the kernel has none.
    pub return_thunk: u32,
    /// Offset of `__static_call_return0`, 0 if the kernel has none.
    pub return_zero: u32,
    /// Offset of `klp_ftrace_handler`, which the tracer calls in live-patched functions; 0 if the
    /// kernel has none.
    pub livepatch: u32,
    /// The code that `ftrace_caller` and `ftrace_regs_caller` are, entry to end; empty if the
    /// kernel has none. Traced functions call these entries, or copies of this code in pages
    /// outside the image.
    pub tracers: [Span; 2],
    /// [`Site`]s.
    pub sites: Table,
    /// Function entries: `u32` offsets.
    pub functions: Table,
    /// Where the function tracer patches: `u32` offsets of [`TRACED_LENGTH`] bytes each, which are
    /// a NOP or a call.
    pub traced: Table,
    /// Instructions of text that may fault because an exception-table entry tells where to go on:
    /// `u32` offsets.
    pub faulting: Table,
    /// Text in which the kernel accepts no kprobe (its blacklist): [`Span`]s.
    pub unprobed: Table,
    /// Symbols in order of offset: their number (`u32`), then for all of them the distance from
    /// the one before (LEB128), then the types (`u8`), then the names, each with a NUL.
    pub symbols: Table,
    /// The kernel's release and version, NUL-padded UTF-8.
    pub release: [u8; 64],
    /// What a boot loader must know of the kernel file.
    pub load: Load,
}

/// How the kernel file is loaded (Linux, Documentation/arch/x86/boot.rst), for a kernel that
/// another one starts: then the file is not at hand, and what was loaded must be recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Load {
    /// Bytes of the setup code, which stays behind: what is loaded follows it in the file.
    pub setup_length: u32,
    /// Bytes that the kernel needs where it is loaded (`init_size`).
    pub init_size: u32,
    /// [`crate::Fingerprint`] of what is loaded, from `setup_length` to the end of the file.
    pub fingerprint: [u8; 32],
    /// The file from [`SETUP_HEADER`] to the end of the setup header, then zeros.
    pub setup_header: [u8; 128],
}

/// Where the setup header begins in a kernel file, and in the page that tells a kernel of its boot.
pub const SETUP_HEADER: usize = 0x1f1;

impl Header {
    /// Bytes of the kernel file that are loaded.
    pub const fn loaded_length(&self) -> u64 {
        self.kernel_length.saturating_sub(self.load.setup_length as u64)
    }

    /// The kernel's release, its first word.
    pub fn release(&self) -> &str {
        let text = self.release.split(|byte| matches!(byte, 0 | b' ')).next();
        core::str::from_utf8(text.unwrap_or_default()).unwrap_or_default()
    }
}

/// Bytes of the header that precede what its digest covers.
pub const UNDIGESTED: usize = core::mem::offset_of!(Header, resident_length);

/// Kinds of patch site. Lengths are those of the instruction in the kernel as it was linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SiteKind {
    /// Jump label: a NOP or a jump to `target`; 2 or 5 bytes.
    JumpLabel = 1,
    /// Static call: a call of a function, a NOP, or `xor eax, eax` in its long form; 5 bytes.
    StaticCall = 2,
    /// Static tail call or trampoline: a jump to a function or a return; 5 bytes.
    StaticTailCall = 3,
    /// Conditional static tail call: a conditional jump to a function; 6 bytes.
    StaticConditional = 4,
    /// Inside the tracer (`ftrace_call`, `ftrace_regs_call`): a call of a function; 5 bytes.
    TracerCall = 5,
}

impl SiteKind {
    /// The kind with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::JumpLabel,
            2 => Self::StaticCall,
            3 => Self::StaticTailCall,
            4 => Self::StaticConditional,
            5 => Self::TracerCall,
            _ => return None,
        })
    }
}

/// Bytes at an offset of [`Header::traced`].
pub const TRACED_LENGTH: u32 = 5;

/// One patch site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Site {
    /// First byte of the instruction.
    pub offset: u32,
    /// Jump label: the destination. Static call: the offset of the function it calls at link
    /// time, 0 if none.
    pub target: u32,
    /// A [`SiteKind`].
    pub kind: u8,
    /// Bytes of the instruction, 2, 5 or 6.
    pub length: u8,
    /// Always 0.
    pub reserved: u16,
}

impl Site {
    /// One past the last byte.
    pub const fn end(&self) -> u64 {
        self.offset as u64 + self.length as u64
    }
}

/// A manifest whose header, table bounds, order and digest were checked.
#[derive(Clone, Copy, Debug)]
pub struct Manifest<'a> {
    header: &'a Header,
    sites: &'a [Site],
    functions: &'a [u32],
    traced: &'a [u32],
    faulting: &'a [u32],
    unprobed: &'a [Span],
}

/// Why bytes are no manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManifestError {
    /// No magic number.
    NotAManifest,
    /// Shorter than its own header says.
    Truncated,
    /// Another version of the layout.
    Version(u32),
    /// The digest does not match.
    Damaged,
    /// A table lies outside, is unaligned or unsorted, or a span is not in the image.
    Malformed,
}

impl<'a> Manifest<'a> {
    /// Checks a whole manifest, digest included, then gives its resident part.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ManifestError> {
        let header = Self::header_of(bytes)?;
        let whole = bytes.get(..header.total_length as usize).ok_or(ManifestError::Truncated)?;
        let covered = whole.get(UNDIGESTED..).ok_or(ManifestError::Truncated)?;
        if crate::digest(covered) != header.digest {
            return Err(ManifestError::Damaged);
        }
        Self::resident(bytes)
    }

    /// The header at the start of `bytes`, its magic number, version and lengths checked.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn header_of(bytes: &'a [u8]) -> Result<&'a Header, ManifestError> {
        let (header, _) =
            Header::ref_from_prefix(bytes).map_err(|_| ManifestError::NotAManifest)?;
        if header.magic != MAGIC {
            return Err(ManifestError::NotAManifest);
        }
        if header.version != VERSION {
            return Err(ManifestError::Version(header.version));
        }
        let sane = header.total_length <= MAX_LENGTH
            && header.resident_length <= header.total_length
            && header.resident_length as usize >= size_of::<Header>();
        if sane { Ok(header) } else { Err(ManifestError::Malformed) }
    }

    /// Takes the first `resident_length` bytes of a manifest that was checked whole before.
    /// Everything that [`Manifest::parse`] checks but the digest is checked here too.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn resident(bytes: &'a [u8]) -> Result<Self, ManifestError> {
        let header = Self::header_of(bytes)?;
        let kept = bytes.get(..header.resident_length as usize).ok_or(ManifestError::Truncated)?;
        let sites: &[Site] = table(kept, header.sites)?;
        let functions: &[u32] = table(kept, header.functions)?;
        let traced: &[u32] = table(kept, header.traced)?;
        let faulting: &[u32] = table(kept, header.faulting)?;
        let unprobed: &[Span] = table(kept, header.unprobed)?;
        let [first, second] = header.tracers;
        let spans = [header.text, header.rodata, header.ro_after_init, header.init_text];
        let spans_fit = spans
            .iter()
            .chain([&first, &second])
            .chain(unprobed)
            .all(|s| s.start <= s.end && s.end <= header.image_end);
        let sites_sorted =
            sites.windows(2).all(|w| matches!(w, [a, b] if a.end() <= u64::from(b.offset)));
        let sites_sane = sites.iter().all(|site| {
            SiteKind::from_number(site.kind).is_some()
                && matches!(site.length, 2 | 5 | 6)
                && site.end() <= u64::from(header.image_end)
        });
        let ascending = |table: &[u32], step: u32| {
            let in_image = table.last().is_none_or(|last| *last < header.image_end);
            in_image
                && table.windows(2).all(|w| matches!(w, [a, b] if a.saturating_add(step) <= *b))
        };
        let tables_sorted = ascending(functions, 1)
            && ascending(traced, TRACED_LENGTH)
            && ascending(faulting, 1)
            && unprobed.windows(2).all(|w| matches!(w, [a, b] if a.end <= b.start));
        if spans_fit && sites_sane && sites_sorted && tables_sorted {
            Ok(Self { header, sites, functions, traced, faulting, unprobed })
        } else {
            Err(ManifestError::Malformed)
        }
    }

    /// The header.
    pub const fn header(&self) -> &'a Header {
        self.header
    }

    /// All patch sites, by offset.
    pub const fn sites(&self) -> &'a [Site] {
        self.sites
    }

    /// Offsets at which the function tracer patches, ascending.
    pub const fn traced(&self) -> &'a [u32] {
        self.traced
    }

    /// Offsets of instructions that may fault, ascending.
    pub const fn faulting(&self) -> &'a [u32] {
        self.faulting
    }

    /// Text that takes no kprobes, ascending.
    pub const fn unprobed(&self) -> &'a [Span] {
        self.unprobed
    }

    /// Whether the manifest was made from the kernel file of this length and digest.
    pub const fn belongs_to(&self, kernel_length: u64, kernel_digest: u64) -> bool {
        self.header.kernel_length == kernel_length && self.header.kernel_digest == kernel_digest
    }

    /// The site that holds byte `offset`.
    pub fn site_at(&self, offset: u64) -> Option<&'a Site> {
        let after = self.sites.partition_point(|site| u64::from(site.offset) <= offset);
        let site = self.sites.get(after.checked_sub(1)?)?;
        (offset < site.end()).then_some(site)
    }

    /// The traced place that holds byte `offset`, by its own offset.
    pub fn traced_at(&self, offset: u64) -> Option<u32> {
        let after = self.traced.partition_point(|&start| u64::from(start) <= offset);
        let start = *self.traced.get(after.checked_sub(1)?)?;
        (offset - u64::from(start) < u64::from(TRACED_LENGTH)).then_some(start)
    }

    /// Whether the kernel itself would accept a kprobe at `offset`, as far as its blacklist says.
    pub fn may_probe(&self, offset: u64) -> bool {
        let next = self.unprobed.partition_point(|span| u64::from(span.end) <= offset);
        let listed = self.unprobed.get(next).is_some_and(|span| span.contains(offset));
        self.header.text.contains(offset) && !listed
    }

    /// The function entry at `offset` or closest before it.
    pub fn function_before(&self, offset: u64) -> Option<u64> {
        let after = self.functions.partition_point(|&entry| u64::from(entry) <= offset);
        self.functions.get(after.checked_sub(1)?).map(|&entry| entry.into())
    }

    /// Whether a function starts at `offset`.
    pub fn is_function_entry(&self, offset: u32) -> bool {
        self.functions.binary_search(&offset).is_ok()
    }
}

fn table<T: FromBytes + KnownLayout + Immutable>(
    bytes: &[u8],
    table: Table,
) -> Result<&[T], ManifestError> {
    let tail = bytes.get(table.offset as usize..).ok_or(ManifestError::Malformed)?;
    let (items, _) = <[T]>::ref_from_prefix_with_elems(tail, table.count as usize)
        .map_err(|_| ManifestError::Malformed)?;
    Ok(items)
}
