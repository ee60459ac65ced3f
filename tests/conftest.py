"""All tests see 8 virtual devices, as meshes need them; what asks for none runs on the first.

Property tests draw the same cases in every run, so that a commit passes or fails for good; `benchmarks/fuzz.py` looks
for new ones.
"""

import hypothesis
import jax

jax.config.update("jax_num_cpu_devices", 8)
hypothesis.settings.register_profile("same every time", derandomize=True)
hypothesis.settings.load_profile("same every time")
