"""The skills of the demo model: one module per skill, each with `sample(rng, heldout)`."""
