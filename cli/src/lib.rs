//! The `ravelin` command as a library, so that `xtask` drives the same code as a user does.
