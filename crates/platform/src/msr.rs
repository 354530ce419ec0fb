//! Model-specific registers: which ones a guest reads and writes by itself, and what becomes of the
//! others.
