//! Documents and bank files, checked by programs that others wrote.

mod bank_files;
mod checkers;
mod e_invoices;
