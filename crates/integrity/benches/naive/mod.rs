//! The counters as the Heki RFC has them: three numbers for every 4 KiB frame, in a radix tree with
//! the fan-out of page tables. Large leaves are expanded.

use addr::{FrameRange, GuestPhysical};
use integrity::Rights;

const FANOUT: u64 = 512;

type Counts = [u32; 3];
type Leaf = Box<[Counts; 512]>;
type Middle = Box<[Option<Leaf>; 512]>;

/// The tree.
#[derive(Default)]
pub struct Naive {
    top: Vec<Option<Middle>>,
    /// Bytes that it takes.
    pub bytes: usize,
}

impl Naive {
    /// The counters of a frame, which are made if there are none.
    pub fn at(&mut self, frame: u64) -> &mut Counts {
        let index = |shift: u32| usize::try_from(frame >> shift & (FANOUT - 1)).unwrap_or_default();
        let top = usize::try_from(frame >> 18).unwrap_or_default();
        if self.top.len() <= top {
            self.top.resize_with(top + 1, || None);
        }
        let bytes = &mut self.bytes;
        let middle = self.top[top].get_or_insert_with(|| {
            *bytes += size_of::<[Option<Leaf>; 512]>();
            Box::new([const { None }; 512])
        });
        let leaf = middle[index(9)].get_or_insert_with(|| {
            *bytes += size_of::<[Counts; 512]>();
            Box::new([[0; 3]; 512])
        });
        &mut leaf[index(0)]
    }

    /// A new mapping.
    pub fn map(&mut self, range: FrameRange<GuestPhysical>, rights: Rights) {
        for frame in range.start.raw()..range.end.raw() {
            for (count, right) in self.at(frame).iter_mut().zip(Rights::all().iter()) {
                *count += u32::from(rights.contains(right));
            }
        }
    }

    /// A mapping has other rights now.
    pub fn update(&mut self, range: FrameRange<GuestPhysical>, from: Rights, to: Rights) {
        for frame in range.start.raw()..range.end.raw() {
            for (count, right) in self.at(frame).iter_mut().zip(Rights::all().iter()) {
                *count += u32::from((to - from).contains(right));
                *count = count.saturating_sub(u32::from((from - to).contains(right)));
            }
        }
    }
}
