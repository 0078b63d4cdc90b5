"""The contract between the front door and the workers.

What a job is (`contract`), how it can fail (`problems`), how it is sealed (`sealing`), under
which key and for how long it is kept (`store`), and how all of it is set up (`settings`).
Imports neither aiohttp nor torch nor PIL, so either side can be installed without the other.
"""

__version__ = "0.1.0"
