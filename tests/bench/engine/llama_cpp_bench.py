"""What llama.cpp does on this machine: tokens per second of one stream and of a long prompt.

    python llama_cpp_bench.py MODEL.gguf [--threads 2] [--prompt 1024] [--tokens 128]

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

    def timed(tokens, work):
        """Tokens per second, and per second of processor time."""
        start = time.perf_counter(), time.process_time()
        work()
        return tokens / (time.perf_counter() - start[0]), tokens / (time.process_time() - start[1])

    def prefill():
        llm.reset()
        prompt = tokens(arguments.prompt)
        return timed(arguments.prompt, lambda: llm.eval(prompt))

    def decode():
        llm.reset()
        llm.eval(tokens(16))
        stream = tokens(arguments.tokens)
        return timed(arguments.tokens, lambda: [llm.eval([token]) for token in stream])

    def report(what, measure):
        wall, processor = zip(*(measure() for _ in range(REPEATS)))
        print(
            f"{what:<28} {statistics.median(wall):8.1f} tokens/s, "
            f"{statistics.median(processor):8.1f} a processor second"
        )

    print(f"llama-cpp-python {llama_cpp.__version__}, {arguments.threads} threads")
    print(llama_cpp.llama_print_system_info().decode())
    report(f"prefill of {arguments.prompt} tokens", prefill)
    report("decode, one stream", decode)


if __name__ == "__main__":
    main()
