"""What landing files hold: JSON lines, Avro containers and length-delimited Protobuf, plain or gzip."""
