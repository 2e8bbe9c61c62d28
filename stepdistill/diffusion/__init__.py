"""The mathematics of diffusion: schedules, predictions, time laws, guidance, samplers and solvers."""
