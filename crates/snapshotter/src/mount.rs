//! Ways to give a layer to the kernel.
