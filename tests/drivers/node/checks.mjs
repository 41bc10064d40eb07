// All checks, for a stage: its driver, client, database and view.

import { data } from './checks_data.mjs';
import { cursors } from './checks_cursors.mjs';
import { sessions } from './checks_sessions.mjs';
import { streams } from './checks_streams.mjs';
import { limits } from './checks_limits.mjs';

export const checks = stage => ({
  ...data(stage),
  ...cursors(stage),
  ...sessions(stage),
  ...streams(stage),
  ...limits(stage),
});
