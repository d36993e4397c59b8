"""The `.proto` that is made from a contract, as protoc reads it, is the schema that messages are decoded by."""

from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from mltrust import conf
from mltrust.contract import Contract
from mltrust.formats import protobuf
from tests.conftest import ROOT
from tests.unit.test_formats import CONTRACT


def test_protoc_reads_the_proto_as_the_descriptor_that_decodes(tmp_path: Path) -> None:
    shipped, _ = conf.read(Contract, ROOT / "conf/contracts/recommendations.yaml")
    for contract in (shipped, CONTRACT):
        file, compiled = tmp_path / f"{contract.log}.proto", tmp_path / "compiled"
        file.write_text(protobuf.proto(contract))
        assert protoc.main(["protoc", f"-I{tmp_path}", f"--descriptor_set_out={compiled}", str(file)]) == 0
        [read] = descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes()).file
        assert read == protobuf.descriptor(contract)
