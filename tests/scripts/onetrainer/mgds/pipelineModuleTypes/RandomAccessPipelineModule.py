class RandomAccessPipelineModule:
    pass
