"""`python toy_speedrun.py build=function ... -- ARGS`: the speedrun over the toy stages."""

import sys

from flow_toys import toys

from flows import pipeline, speedrun

if __name__ == "__main__":
    cut = sys.argv.index("--")
    pipeline.STAGES = toys(**dict(item.split("=") for item in sys.argv[1:cut]))
    sys.exit(speedrun.main(sys.argv[cut + 1 :]))
