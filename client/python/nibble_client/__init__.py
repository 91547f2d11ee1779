"""Client of nibble: quantization jobs, models, generation and evaluation over gRPC.

    with Client("127.0.0.1:8500") as nibble:
        for piece in nibble.generate("smollm2-w4a8", "The capital of France is"):
            print(piece, end="", flush=True)

Messages are the generated ones of nibble.v1 (`from nibble.v1 import quantization_pb2`), whose
.proto files document every field.
"""

from nibble_client.client import Client, Messages
from nibble_client.errors import NibbleError
from nibble_client.fields import Corpus, EnumValue, GenerateFields, JobFields, ProfileFields
from nibble_client.streams import Evaluation, Generation, Profile

__all__ = ["Client", "Corpus", "EnumValue", "Evaluation", "GenerateFields", "Generation",
           "JobFields", "Messages", "NibbleError", "Profile", "ProfileFields"]
