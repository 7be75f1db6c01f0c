//! Slurm's plugin for hpcrun: `srun --image=app.sqsh ./solver` is `srun hpcrun exec app.sqsh ./solver`.
//!
//! It only turns options into hpcrun's command line, in the task's own process, as its user, right before Slurm
//! executes the task. Everything else is hpcrun's. Nothing of it runs as root but the registration of the options.

mod abi;
mod options;
mod plugin;
