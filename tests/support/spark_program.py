"""A program for test_spark.py: answer a question of Parquet files with Spark, on two executor processes.

Its arguments are the question in SQL and a view for each file or folder, as ``logs=logs.parquet``.
"""

import json
import sys

from pyspark.sql import SparkSession

SHORT_RUN = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"  # so few rows repay no optimising
SETTINGS = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.extraJavaOptions": SHORT_RUN,
    "spark.driver.host": "127.0.0.1",
    "spark.executor.extraJavaOptions": SHORT_RUN,
    "spark.scheduler.maxRegisteredResourcesWaitingTime": "100s",
    "spark.scheduler.minRegisteredResourcesRatio": "1",  # wait for both executors
    "spark.sql.shuffle.partitions": "2",
    "spark.ui.enabled": "false",
}


def answer(question: str, views: list[str]) -> dict[str, object]:
    builder = SparkSession.builder.master("local-cluster[2,1,1024]")  # processes, cores and MiB of each
    for key, value in SETTINGS.items():
        builder = builder.config(key, value)
    with builder.getOrCreate() as spark:
        for view in views:
            name, _, path = view.partition("=")
            spark.read.parquet(path).createOrReplaceTempView(name)
        rows = [list(row) for row in spark.sql(question).collect()]
        driver_and_executors = spark.sparkContext._jsc.sc().statusTracker().getExecutorInfos()
        return {"rows": rows, "executors": len(driver_and_executors) - 1}


if __name__ == "__main__":
    json.dump(answer(sys.argv[1], sys.argv[2:]), sys.stdout)
