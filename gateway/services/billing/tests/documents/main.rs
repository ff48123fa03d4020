//! Documents and bank files, checked by programs that others wrote.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod bank_files;
mod checkers;
mod e_invoices;
