//! The scheduler: demands become few, large, resumable requests.
