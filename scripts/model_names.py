"""Write the names of smp's models, which a login node knows recipes by.   python scripts/model_names.py"""

import json

from contrails.models.build import smp_names
from contrails.models.names import NAMES

NAMES.write_text(json.dumps(smp_names(), indent=1) + "\n")
