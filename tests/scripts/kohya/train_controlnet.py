"""A script whose loop lies in another file."""

from library import train_util
from library.models import parse_args
from train_control_net import train

if __name__ == "__main__":
    assert train_util.BaseDataset
    train(parse_args())
