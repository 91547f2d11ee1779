"""What llama.cpp does on this machine: tokens per second of one stream and of a long prompt.

    python llama_cpp.py MODEL.gguf [--threads 2] [--prompt 1024] [--tokens 128]

Needs PyPI's llama-cpp-python. The figures are generate_bench's: medians of 5, random tokens; decoding
starts after 16 of them.
"""

import argparse
import random
import statistics
import time

import llama_cpp

REPEATS = 5
SEED = 20261126


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=128)
    arguments = parser.parse_args()
    llm = llama_cpp.Llama(
        arguments.model,
        n_ctx=2048,
        n_batch=arguments.prompt,
        n_threads=arguments.threads,
        n_threads_batch=arguments.threads,
        verbose=False,
    )
    rng = random.Random(SEED)

    def tokens(count):
        return [rng.randrange(llm.n_vocab()) for _ in range(count)]

    def prefill():
        llm.reset()
        prompt = tokens(arguments.prompt)
        start = time.perf_counter()
        llm.eval(prompt)
        return arguments.prompt / (time.perf_counter() - start)

    def decode():
        llm.reset()
        llm.eval(tokens(16))
        stream = tokens(arguments.tokens)
        start = time.perf_counter()
        for token in stream:
            llm.eval([token])
        return arguments.tokens / (time.perf_counter() - start)

    def median(measure):
        return statistics.median(measure() for _ in range(REPEATS))

    print(f"llama-cpp-python {llama_cpp.__version__}, {arguments.threads} threads")
    print(llama_cpp.llama_print_system_info().decode())
    print(f"prefill of {arguments.prompt} tokens      {median(prefill):8.1f} tokens/s")
    print(f"decode, one stream          {median(decode):8.1f} tokens/s")


if __name__ == "__main__":
    main()
