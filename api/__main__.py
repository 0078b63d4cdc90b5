import sys

from api.main import run as front_door
from jobs.process import run

sys.exit(run(front_door))
