//! Random calls with random arguments, the same ones in every run of a task of the same name.

use crate::check;
use abi::task::{Call, END, INFO, STACK_TOP, START, answer};
use task_rt::{log, raw};

/// How many calls. Few enough that the task is not taken for one that loops.
const CALLS: u64 = 3_000;
/// Secrets and memory that are mapped go here, so that nothing in use is unmapped or written.
const FREE: u64 = 16 << 30;

/// A generator of numbers (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A number that is often close to a limit.
    fn argument(&mut self) -> u64 {
        const LIMITS: [u64; 12] =
            [0, 1, 4096, 2 << 20, START, FREE, STACK_TOP, INFO, END, 1 << 32, 1 << 47, u64::MAX];
        let skipped = self.below(12);
        let limit = LIMITS.iter().zip(0..).find(|(_, number)| *number == skipped);
        let limit = limit.map_or(0, |(limit, _)| *limit);
        match self.below(4) {
            0 => self.next(),
            1 => self.below(600),
            2 => limit.wrapping_add(self.below(9)).wrapping_sub(4),
            _ => limit,
        }
    }

    /// An address of nothing that the task needs.
    fn address(&mut self) -> u64 {
        match self.below(3) {
            0 => FREE + (self.below(1024) << 12),
            1 => FREE + (self.below(16) << 21),
            _ => {
                let address = self.argument();
                let needed = [START - (4 << 20)..START + (64 << 20), STACK_TOP - (4 << 20)..END];
                if needed.iter().any(|range| range.contains(&address)) {
                    FREE + (address & 0xfff)
                } else {
                    address
                }
            }
        }
    }
}

/// All calls; every answer must be one that there is.
pub fn calls(name: &str) {
    // Any number but 0.
    let mut random = Random(name.bytes().fold(0x9e37_79b9_7f4a_7c15, |all, byte| {
        (all ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    }));
    let (mut done, mut strange) = (0_u64, 0_u64);
    for _ in 0..CALLS {
        let number = if random.below(16) == 0 { random.argument() } else { random.below(11) };
        let mut arguments = [(); 4].map(|()| random.argument());
        match Call::from_number(number) {
            Some(Call::Exit | Call::Wait) => continue,
            // Its answer would go on the event channel.
            Some(Call::Log) => arguments[1] = arguments[1].max(4097),
            Some(Call::Map | Call::Unmap) => {
                arguments[0] = random.address();
                if random.below(4) > 0 {
                    [arguments[1], arguments[2]] = [random.below(9), random.below(2)];
                }
            }
            Some(Call::SecretMap) => {
                [arguments[0], arguments[1]] = [random.below(12), random.address()];
            }
            Some(Call::GuestRead) => arguments[2] = random.address(),
            Some(Call::SecretCreate) if random.below(2) == 0 => {
                arguments[0] = random.below(5 << 20);
            }
            Some(Call::Send | Call::SecretUnmap | Call::SecretDestroy) => {
                arguments[0] = random.below(12);
            }
            Some(Call::SecretCreate) | None => {}
        }
        // SAFETY: what the call can map, unmap or write is nothing that the task uses.
        let rax = unsafe { raw(number, arguments) };
        match answer(rax) {
            Ok(_) => done += 1,
            Err(error) => strange += u64::from(error.raw() != rax),
        }
    }
    log!("{done} calls were done");
    check("every answer is known", strange, 0);
}
