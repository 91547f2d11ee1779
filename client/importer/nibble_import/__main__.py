"""python -m nibble_import gguf FILE OUT_DIR | hf DIR OUT_DIR"""

import argparse
import signal
import sys

from nibble_import.folder import ImportRefused


def main():
    parser = argparse.ArgumentParser(prog="nibble_import", description=__doc__)
    parser.add_argument("kind", choices=("gguf", "hf"))
    parser.add_argument("source", help="a .gguf file, or a Hugging Face folder or "
                        "hub cache's models--ORG--NAME")
    parser.add_argument("out_dir", help="the folder to make; it must not exist")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if arguments.kind == "gguf":
            from nibble_import.gguf_model import import_gguf as import_model
        else:
            from nibble_import.hf_model import import_hf as import_model
        import_model(arguments.source, arguments.out_dir)
    except (ImportRefused, OSError) as error:
        print(f"import: {error}", file=sys.stderr)
        return 1
    except MemoryError:
        print("import: out of memory, expected room for the largest tensor", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("import: stopped", file=sys.stderr)
        return 1
    return 0


sys.exit(main())
