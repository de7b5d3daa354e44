"""The mathematics of discrete diffusion, on plain tensors.

One convention throughout: time `t` runs from 0 (clean) to 1 (pure noise), `alpha(t)` is the schedule,
which falls from 1 to 0, log-likelihoods are in nats. Shapes stand in names: B batch, L length,
V vocabulary, N selected positions; `x0` clean ids, `xt` noisy ids. Nothing here reads global random
state, and nothing here imports more than torch.
"""
