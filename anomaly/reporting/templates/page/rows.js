/* The data of the page: the fields of anomaly/reporting/html/rows.py, for tools that check types.
   A test compares the two; nothing here runs.

   Numbers of FeatureValue.side: -1 below the range of normal scans, 1 above, 0 within or without one. */

/**
 * @typedef {"flagged" | "normal" | "not scored"} StatusName
 *
 * @typedef {[place: string, area: string, area_mm2: string, across: string, peak: string]} RegionRow
 *
 * @typedef {[feature: number, value: number, share: number | null, side: number]} FeatureValue
 *
 * @typedef {object} Status
 * @property {string} icon
 * @property {string} title
 * @property {string} short
 *
 * @typedef {object} FeatureColumn
 * @property {string} name
 * @property {string} unit
 * @property {[number, number] | null} range
 * @property {string} range_text
 *
 * @typedef {object} Figure
 * @property {number} width
 * @property {number} height
 * @property {string} image
 * @property {string} grey
 * @property {string | null} expected
 * @property {string | null} look_alike
 * @property {string | null} overlay
 * @property {string | null} spread
 * @property {string} contour
 * @property {[number, number][]} labels
 *
 * @typedef {object} Fact
 * @property {string} label
 * @property {string} value
 *
 * @typedef {object} ScanRow
 * @property {string} key
 * @property {number | null} study
 * @property {"flagged" | "normal"} status
 * @property {string} site
 * @property {string} view
 * @property {number} p
 * @property {string} p_text
 * @property {string} odds
 * @property {string} words
 * @property {number} score
 * @property {string} score_text
 * @property {string} as_high
 * @property {number} place
 * @property {boolean} off_scale
 * @property {FeatureValue[]} features
 * @property {RegionRow[]} regions
 * @property {string} note
 * @property {Figure | null} figure
 * @property {Record<string, Fact[]>} facts
 *
 * @typedef {object} SkippedRow
 * @property {string} key
 * @property {number | null} study
 * @property {"not scored"} status
 * @property {string} site
 * @property {string} view
 * @property {string} reason
 *
 * @typedef {ScanRow | SkippedRow} Row
 *
 * @typedef {object} PageData
 * @property {string} id
 * @property {boolean} private
 * @property {string} alpha
 * @property {string} threshold
 * @property {Record<StatusName, Status>} statuses
 * @property {FeatureColumn[]} features
 * @property {string[]} studies
 * @property {boolean} images
 * @property {Row[]} rows
 */

export {};
