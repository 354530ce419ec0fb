//! The queue of freed frames, in batches that wait for the same flush. The frames of a batch are
//! linked through their words.

/// Batches that wait for different requests at the same time. More share the last one's.
const BATCHES: usize = 4;

/// Frames freed since one flush and before the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Batch {
    /// Request that every CPU must have served.
    request: u64,
    /// First frame.
    first: Option<u32>,
}

/// The batches, oldest first; those without frames at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Quarantine {
    batches: [Batch; BATCHES],
    /// Frames in all of them.
    count: u32,
}

impl Quarantine {
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// The request that the oldest frames wait for.
    pub fn oldest(&self) -> Option<u64> {
        self.batches[0].first.map(|_| self.batches[0].request)
    }

    /// Adds a frame that waits for `request`, which is not less than for the one before. Answers
    /// the frame to link it to.
    pub fn push(&mut self, frame: u32, request: u64) -> Option<u32> {
        let used = self.batches.iter().take_while(|batch| batch.first.is_some()).count();
        let is_new = used == 0 || used < BATCHES && self.batches[used - 1].request < request;
        let batch = &mut self.batches[if is_new { used } else { used - 1 }];
        // A frame may wait longer than it must, never less.
        batch.request = request;
        self.count += 1;
        batch.first.replace(frame)
    }

    /// A frame whose batch waits for no more than `acknowledged`, to be taken out by
    /// [`Quarantine::pop`].
    pub fn ready(&self, acknowledged: u64) -> Option<u32> {
        self.batches[0].first.filter(|_| self.batches[0].request <= acknowledged)
    }

    /// Takes out the first frame of the oldest batch, which is linked to `next`.
    pub fn pop(&mut self, next: Option<u32>) {
        self.count -= 1;
        self.batches[0].first = next;
        if next.is_none() {
            self.batches.rotate_left(1);
            self.batches[BATCHES - 1] = Batch::default();
        }
    }
}
