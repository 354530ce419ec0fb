//! Messages that wait for a task: a bounded queue. What finds no room is counted, and told.

use crate::cpu::instructions::time_stamp;
use abi::task::{MAX_PAYLOAD, Message, MessageKind};
use addr::Gfn;
use arrayvec::ArrayVec;

/// Most messages that wait.
const CAPACITY: usize = 32;

/// A message, and the guest's frame that it lets the task look at.
#[derive(Clone, Copy)]
pub struct Post {
    /// As the task gets it, but for the number of the grant.
    pub message: Message,
    /// A frame of guest RAM.
    pub about: Option<Gfn>,
}

impl Post {
    /// A message with this payload, cut at [`MAX_PAYLOAD`].
    pub fn new(kind: MessageKind, detail: u32, token: u64, payload: &[u8]) -> Self {
        let mut message = Message {
            kind: kind as u32,
            detail,
            token,
            time: time_stamp(),
            grant: 0,
            grant_length: 0,
            length: 0,
            reserved: 0,
            payload: [0; MAX_PAYLOAD],
        };
        for (to, from) in message.payload.iter_mut().zip(payload) {
            *to = *from;
            message.length += 1;
        }
        Self { message, about: None }
    }
}

/// The queue.
pub struct Inbox {
    /// Oldest first.
    posts: ArrayVec<Post, CAPACITY>,
    lost: u32,
}

impl Inbox {
    /// An empty queue.
    pub const fn new() -> Self {
        Self { posts: ArrayVec::new_const(), lost: 0 }
    }

    /// Adds a message at the end.
    pub fn push(&mut self, post: Post) {
        if self.posts.try_push(post).is_err() {
            self.lost = self.lost.saturating_add(1);
        }
    }

    /// Adds a message that must come first.
    pub fn push_first(&mut self, post: Post) {
        if self.posts.is_full() {
            self.posts.pop();
            self.lost = self.lost.saturating_add(1);
        }
        // There is room.
        let _ = self.posts.try_insert(0, post);
    }

    /// Takes the next message out. That some were lost is told when all others are fetched.
    pub fn take(&mut self) -> Option<Post> {
        if let Some(post) = self.posts.pop_at(0) {
            return Some(post);
        }
        let lost = core::mem::take(&mut self.lost);
        (lost > 0).then(|| Post::new(MessageKind::Lost, lost, 0, &[]))
    }
}
