"""The producer: a service logs its predictions with it. Standard library only, no Spark.

with InferenceLogger("recommendations.json", Files("/var/landing/recommendations")) as logger:
    logger.log(request_id="r1", model_name="ranker", model_version="1", ...)
"""

from mltrust.client.counts import Counts
from mltrust.client.files import Files
from mltrust.client.landing import recover
from mltrust.client.logger import InferenceLogger
from mltrust.client.policies import Block, Drop, Spill
from mltrust.client.sinks import Sink
from mltrust.client.wire import ContractError

__all__ = ["Block", "ContractError", "Counts", "Drop", "Files", "InferenceLogger", "Sink", "Spill", "recover"]
