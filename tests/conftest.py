"""All tests see 8 virtual devices, as meshes need them; what asks for none runs on the first."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
