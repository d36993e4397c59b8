"""Packaging of mltrust; `jobs/` is installed as `mltrust_jobs`."""

from pathlib import Path

from setuptools import find_packages, setup

JOBS = sorted(path.stem for path in Path(__file__).parent.joinpath("jobs").glob("[a-z]*.py"))

setup(
    name="mltrust",
    version="0.1.0",
    description="What you can trust of your models in production: experiments, drift, replay and monitoring on Spark",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["mltrust", "mltrust.*"]), "mltrust_jobs"],
    package_dir={"mltrust_jobs": "jobs"},
    package_data={"mltrust": ["py.typed", "ivysettings.xml"]},
    install_requires=[
        "pyspark>=4.1,<4.2",
        "delta-spark>=4.1,<5",
        "numpy>=2",
        "scipy>=1.14",
        "shap>=0.48",
        "mlflow>=3.4,<4",
        "scikit-learn>=1.6",
        "threadpoolctl>=3",
        "matplotlib>=3.9",
        "pandas>=2.2,<3",  # pyspark 4.1 turns None into 'nan' with pandas 3
        "pyarrow>=18,<26",
        "pydantic>=2.9,<3",
        "fastavro[snappy,zstandard]>=1.9",
        "protobuf>=5",
        "PyYAML>=6",
    ],
    extras_require={
        "connect": ["pyspark[connect]>=4.1,<4.2"],
        # A service needs no more than these; the package itself comes with --no-deps (docs/client.md).
        "kafka": ["confluent-kafka>=2.6,<3"],
        "serve": ["mlflow>=3.4,<4"],
        "notify": ["apprise>=1.9"],
        "notebooks": ["deltalake>=1.1", "ipykernel>=6.29", "nbclient>=0.10"],
        "dev": [
            "apprise>=1.9",
            "confluent-kafka>=2.6,<3",
            "deltalake>=1.1",
            "grpcio-tools>=1.66",  # protoc, against which the made .proto is tested
            "hypothesis>=6.100",
            "import-linter>=2.1",
            "ipykernel>=6.29",
            "lightgbm>=4.3",  # replays of its models are tested
            "mypy>=1.13",
            "nbclient>=0.10",
            "pandas-stubs>=2.2,<3",
            "pre-commit>=4",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.8",
            "scipy-stubs>=1.14",
            "statsmodels>=0.14",
            "tea-tasting>=1.4",
            "types-protobuf>=5",
            "types-PyYAML>=6",
        ],
    },
    entry_points={
        "console_scripts": [
            "mltrust=mltrust.cli:main",
            # Databricks wheel tasks name an entry point; spark-submit takes the file itself.
            *(f"mltrust-{job.replace('_', '-')}=mltrust_jobs.{job}:main" for job in JOBS),
        ]
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering",
    ],
)
