"""The storage contract: abstract classes, conditions and results, in prose and signatures."""
