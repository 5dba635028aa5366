//! Bytes, times and tables for people.
