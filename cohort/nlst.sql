-- The DeepCAC2 paper's selection of NLST series, for the BigQuery tables of the Imaging Data Commons (IDC).
-- Run it in the BigQuery console or with `bq query --use_legacy_sql=false`; whoever runs it pays for the query.
--
-- Criteria: CT; SliceThickness from 1 to 5 mm, by minimum and maximum over the series; more than 50 slices; one
-- slice for each position; no localizer; one matrix size, pixel spacing and orientation. One row a series, those
-- left out with their reason, in the order of cohort/selection.py, rule "deepcac2".
-- What others have made of NLST's images (24 series of CT among it) is no part of it.
-- For a result that can be repeated, replace idc_current by a version, such as idc_v18.
WITH images AS (
  SELECT
    PatientID,
    StudyInstanceUID,
    SeriesInstanceUID,
    SOPInstanceUID,
    Modality,
    StudyDate,
    ClinicalTrialTimePointID,
    Manufacturer,
    ManufacturerModelName,
    ARRAY_TO_STRING(ConvolutionKernel, '\\') AS kernel,
    EXISTS (SELECT 1 FROM UNNEST(ImageType) AS part WHERE UPPER(part) = 'LOCALIZER') AS is_localizer,
    SAFE_CAST(SliceThickness AS FLOAT64) AS thickness,
    CONCAT(`Rows`, 'x', `Columns`) AS size,
    ARRAY_TO_STRING(PixelSpacing, '\\') AS spacing,
    ARRAY_TO_STRING(ImageOrientationPatient, '\\') AS orientation,
    ARRAY_TO_STRING(ImagePositionPatient, '\\') AS place
  FROM `bigquery-public-data.idc_current.dicom_all`
  WHERE collection_id = 'nlst' AND analysis_result_id IS NULL
),
series AS (
  SELECT
    PatientID AS patient_id,
    StudyInstanceUID AS study_uid,
    SeriesInstanceUID AS series_uid,
    ANY_VALUE(Modality) AS modality,
    ANY_VALUE(StudyDate) AS study_date,
    ANY_VALUE(ClinicalTrialTimePointID) AS time_point,
    ANY_VALUE(Manufacturer) AS manufacturer,
    ANY_VALUE(ManufacturerModelName) AS model_name,
    ANY_VALUE(kernel) AS kernel,
    COUNTIF(NOT is_localizer) AS n_images,
    COUNTIF(is_localizer) AS n_localizers,
    COUNTIF(NOT is_localizer AND thickness IS NULL) AS n_without_thickness,
    COUNT(DISTINCT IF(is_localizer, NULL, place)) AS n_positions,
    MIN(IF(is_localizer, NULL, thickness)) AS thickness_min,
    MAX(IF(is_localizer, NULL, thickness)) AS thickness_max,
    COUNT(DISTINCT IF(is_localizer, NULL, size)) AS n_sizes,
    COUNT(DISTINCT IF(is_localizer, NULL, spacing)) AS n_spacings,
    COUNT(DISTINCT IF(is_localizer, NULL, orientation)) AS n_orientations
  FROM images
  GROUP BY PatientID, StudyInstanceUID, SeriesInstanceUID
),
judged AS (
  SELECT
    CASE
      WHEN modality IS NULL OR modality <> 'CT' THEN 'not-ct'
      WHEN n_images = 0 THEN 'localizer'
      WHEN n_without_thickness > 0 OR thickness_min IS NULL THEN 'no-thickness'
      WHEN thickness_min < 1 OR thickness_max > 5 THEN 'thickness'
      WHEN n_images <= 50 THEN 'few-slices'
      WHEN n_positions <> n_images THEN 'repeated-positions'
      WHEN n_sizes <> 1 THEN 'mixed-size'
      WHEN n_spacings <> 1 THEN 'mixed-spacing'
      WHEN n_orientations <> 1 THEN 'mixed-orientation'
      ELSE ''
    END AS reason,
    *
  FROM series
)
SELECT reason = '' AS selected, *
FROM judged
ORDER BY patient_id, study_uid, series_uid
