import sys

from jobs.process import run
from worker.main import run as worker

sys.exit(run(worker))
