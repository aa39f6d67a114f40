"""A training script whose loop lies in a module that it imports."""

from columns import main, parse_args

if __name__ == "__main__":
    main(parse_args())
