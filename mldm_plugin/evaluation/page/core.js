// What everything else stands on: the results, and words for them.

const NAMES = R.models.map((model) => model.name);
const FIRST = NAMES[0];
const OTHERS = NAMES.slice(1);
const CASES = new Map(R.cases.map((one) => [one.key, one]));
const JUDGED = R.metrics.filter((metric) => !metric.too_few);
const KINDS = [
  ['picture', 'Each picture', 'a value for each prompt, paired by prompt and noise'],
  ['set', 'All pictures together', 'a distance of all pictures to the photographs'],
  ['one_step', 'One step', 'the clean estimate of held-out photographs at the same noise, mean over t'],
];
const GLYPH = { better: '▲', worse: '▼', 'not shown': '·' };

const hasInterval = (estimate) => known(estimate) && known(estimate.low) && known(estimate.high);
const interval = (estimate, decimals, written = number) =>
  hasInterval(estimate) ? `${written(estimate.low, decimals)} to ${written(estimate.high, decimals)}` : 'no interval';
const estimateOf = (metric, name) => metric.models[name] || null;
const differenceOf = (metric, name) => metric.differences[name] || null;
const verdictOf = (metric, name) => (differenceOf(metric, name) || {}).verdict || 'not shown';
const unitOf = (metric) => (metric.kind === 'one_step' ? 'photographs' : 'prompts');
const casesOf = (metric) => counted(metric.cases, metric.kind === 'one_step' ? 'photograph' : 'prompt');
const arrowOf = (metric) => (metric.better === 'smaller' ? '↓' : '↑');
const directionOf = (metric) => (metric.better === 'smaller' ? 'smaller is better' : 'larger is better');
const trainedOn = (metric) => Object.entries(metric.trained_on || {});
const ofRepetitions = () => (R.sampling.repetitions > 1 ? `, the mean of its ${R.sampling.repetitions} pictures` : '');
const withCases = () => R.metrics.filter((metric) => metric.kind === 'picture' && Object.keys(metric.values).length);
