//! Tests through the binary and against independent oracles; one module a subject.
//!
//! Everything a test needs is set up by `make test`; what is missing then is a failure, never a skip.

#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test that goes wrong should panic; its items are nobody's interface"
)]

mod support;

mod acceptance;
mod accounting;
mod admin_day;
mod bad_input;
mod benches;
mod budgets;
mod busybox_image;
mod cli;
mod convert;
mod dist;
mod doctor;
mod enact;
mod export;
mod faults;
mod foreign_images;
mod frugality;
mod fuzz;
mod gpu;
mod host_mpi;
mod hostile_squashfs;
mod hpc;
mod image_server;
mod launch;
mod launchers;
mod layer_building;
mod layer_cache;
mod layer_cases;
mod manual;
mod merge;
mod mpi;
mod node_cache;
mod options;
mod plan;
mod policy;
mod premounted;
mod registry;
mod registry_config;
mod rules;
mod server_faults;
mod server_signals;
mod sign;
mod site_directory;
mod slurm;
mod slurm_cluster;
mod slurm_plugin;
mod soak;
mod sources;
mod squashfs_reader;
mod squashfs_writer;
mod store;
mod tar_peers;
mod tar_reader;
mod tidy;
mod trace;
mod verify;

use hostile_squashfs::exercise;
